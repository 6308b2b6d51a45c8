#compdef lockfabric
# zsh completion for lockfabric
_lockfabric() {
    local -a found
    # The name of the program is as it was typed.
    found=(${(f)"$("${words[1]/#\~\//$HOME/}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    case $found[1] in
        $'\tcommands') _command_names -e ;;
        $'\tnothing') ;;
        '' | $'\tfiles') _files ;;
        *) compadd -a found ;;
    esac
}
compdef _lockfabric lockfabric
