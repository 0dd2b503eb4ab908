"""`python -m llava_recipes` is `llava-recipe`."""

# Before any other import: until then Python looks for modules in the current folder first.
from llava_recipes.interpreter import leave_current_folder

leave_current_folder()

from llava_recipes.cli.main import main  # noqa: E402

raise SystemExit(main())
