# fish completion for lockfabric
function __lockfabric_complete
    set -l before (commandline -opc)
    # The name of the program is as it was typed.
    set -l program (string replace -r '^~/' "$HOME/" -- $before[1])
    type -q -- $program; or set program lockfabric
    set -e before[1]
    set -l found ($program complete -- $before (commandline -ct) 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        # A file, perhaps, and for run a command or whatever that one expects.
        __fish_complete_path (string replace -r '^--[a-z-]+=' '' -- (commandline -ct))
    end
end
complete -c lockfabric -f -a '(__lockfabric_complete)'
