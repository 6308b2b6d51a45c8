# bash completion for lockfabric
_lockfabric() {
    # bash cuts words at '=' and ':' as well; this puts them together again.
    local words=() word last=${COMP_WORDS[COMP_CWORD]} i glue=
    for ((i = 1; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ ${#words[@]} -gt 0 && ( -n $glue || $word =~ ^[=:]+$ ) ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        glue=
        [[ $word =~ ^[=:]+$ ]] && glue=1
    done
    [[ $last =~ ^[=:]+$ ]] && last=
    # What stands before the piece that bash replaces.
    local whole=${words[${#words[@]}-1]} found
    local head=${whole%"$last"}
    COMPREPLY=()
    while IFS= read -r found; do
        case $found in
            '' | $'\tfiles') ;;
            $'\tcommands') while IFS= read -r found; do COMPREPLY+=("$found"); done < <(compgen -c -- "$last" | sort -u) ;;
            $'\tnothing') compopt +o default 2>/dev/null ;;
            *) COMPREPLY+=("${found#"$head"}") ;;
        esac
    # The name of the program is as it was typed.
    done < <("${COMP_WORDS[0]/#\~\//$HOME/}" complete -- "${words[@]}" 2>/dev/null)
}
complete -o default -F _lockfabric lockfabric
