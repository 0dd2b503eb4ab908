"""`python -m llava_recipes` is `llava-recipe`."""

from llava_recipes.cli.main import main

raise SystemExit(main())
