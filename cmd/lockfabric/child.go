package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/lockfabric/lockfabric/fabric"
)

// afterDashes returns the command behind "--", which the parser passes through.
func afterDashes(command []string) []string {
	if len(command) > 0 && command[0] == "--" {
		return command[1:]
	}
	return command
}

func checkCommand(what string, command []string) error {
	if len(command) == 0 || command[0] == "" {
		return usageError("%s: the command is empty: give one after --", what)
	}
	return nil
}

func childOf(path string, command []string, env ...string) *exec.Cmd {
	cmd := exec.Command(path)
	cmd.Args = command
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// label is what inspection shows of the command: not its arguments, which may be
// secret.
func label(command string) string {
	name := []rune(oneLine(filepath.Base(command)))
	return string(name[:min(len(name), fabric.MaxOwnerLen/4)])
}

func cannotRun(command string, err error) error {
	code, what, advice := exitCannotRun, "can't be run", ""
	var starting *os.PathError
	switch {
	case errors.Is(err, os.ErrNotExist) && errors.As(err, &starting) && starting.Op == "fork/exec": // it was there
		code, advice = exitNotFound, ": look whether the interpreter that its first line names exists"
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		code, what = exitNotFound, "was not found"
	case errors.Is(err, exec.ErrDot):
		advice = ": if that one is meant write ./" + command
	case errors.Is(err, syscall.ENOEXEC):
		advice = ": begin a script with a line such as #!/bin/sh"
	}
	return &exitError{code: code, cause: fmt.Errorf("command %q %s: %w%s", command, what, err, advice)}
}
