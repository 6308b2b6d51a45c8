package main

import (
	_ "embed"
	"fmt"
	"io"
)

// The scripts ask this program, by "lockfabric complete", what may come next. It
// knows its own command line, and they only know their shell.
var (
	//go:embed completion.bash
	bashCompletion string
	//go:embed completion.zsh
	zshCompletion string
	//go:embed completion.fish
	fishCompletion string
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: bash, zsh or fish."`
}

func (*completionCmd) Help() string {
	return "bash: source <(lockfabric completion bash)\n\n" +
		"zsh: source <(lockfabric completion zsh), after compinit\n\n" +
		"fish: lockfabric completion fish | source\n\n" +
		"Commands, flags, their values, contexts and the names of locks are completed. For names the server is asked for a second at most, " +
		"none is started, and those that a shell would have to quote are left out."
}

func (v *completionCmd) Run(s *streams) error {
	text := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[v.Shell]
	_, err := io.WriteString(s.out, text)
	return writeError(err)
}

type completeCmd struct {
	Words []string `arg:"" optional:"" help:"The command line up to the cursor, without the program's name; the last word may be empty."`
}

// Run prints what may come next, one on a line. It never fails: a shell has
// nowhere to show that.
func (v *completeCmd) Run(s *streams) error {
	all, offer := candidates(v.Words)
	for _, text := range all {
		fmt.Fprintln(s.out, text)
	}
	if len(all) == 0 {
		fmt.Fprintln(s.out, offer)
	}
	return nil
}
