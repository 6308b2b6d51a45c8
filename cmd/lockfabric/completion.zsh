#compdef lockfabric
# zsh completion for lockfabric
_lockfabric() {
    local -a found
    # The name of the program is as it was typed.
    found=(${(f)"$("${words[1]/#\~\//$HOME/}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then
        compadd -a found
    else
        _files
    fi
}
compdef _lockfabric lockfabric
