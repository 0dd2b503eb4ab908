bash calls_itself.sh
