# fish completion for lockfabric
function __lockfabric_complete
    set -l before (commandline -opc)
    # The name of the program is as it was typed.
    set -l program (string replace -r '^~/' "$HOME/" -- $before[1])
    type -q -- $program; or set program lockfabric
    set -e before[1]
    set -l found ($program complete -- $before (commandline -ct) 2>/dev/null)
    switch "$found[1]"
    case \tcommands
        complete -C (commandline -ct) | string replace -r '\t.*' ''
    case \tnothing
    case \t'*' ''
        # A file, perhaps, or whatever a command expects.
        __fish_complete_path (string replace -r '^--[a-z-]+=' '' -- (commandline -ct))
    case '*'
        printf '%s\n' $found
    end
end
complete -c lockfabric -f -a '(__lockfabric_complete)'
