#!/bin/sh
# Plays the child's part of a recorded conversation: says the lines that it said, where it said them, and takes in one
# line of the parent's wherever the parent spoke. What it took in goes to $HEARD.
while IFS= read -r entry <&3; do
    case $entry in
    '{"child":'*)
        line=${entry#'{"child":'}
        printf '%s\n' "${line%'}'}"
        ;;
    '{"parent":'*)
        IFS= read -r line || exit 0
        printf '%s\n' "$line" >>"${HEARD:-/dev/null}"
        ;;
    esac
done 3<"$TRANSCRIPT"
