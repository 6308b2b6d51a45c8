# fish completion for lockfabric
function __lockfabric_complete
    set -l before (commandline -opc)
    set -l program $before[1]
    set -e before[1]
    $program complete -- $before (commandline -ct) 2>/dev/null
end
complete -c lockfabric -a '(__lockfabric_complete)'
