package main

import (
	"errors"
	"io"
	"io/fs"

	"github.com/alecthomas/kong"
)

// helpCmd is --help for those who look for a command.
type helpCmd struct {
	Command []string `arg:"" optional:"" complete:"command" help:"The command to tell of."`
	Man     bool     `help:"Print the manual of all commands, in roff, as for man -l."`
}

func (h *helpCmd) Run(s *streams) error {
	parser, err := newParser(&cli{}, s.out, s.err)
	if err == nil && h.Man {
		_, err = io.WriteString(s.out, manPage(parser.Model))
		return writeError(err)
	}
	if err == nil {
		_, err = parser.Parse(append(h.Command, "--help"))
	}
	if err != nil {
		if path := (*fs.PathError)(nil); errors.As(err, &path) && path.Op == "write" {
			return writeError(err)
		}
		return usageError("help: %w: see 'lockfabric --help'", err)
	}
	return nil
}

// versionFlag is the command version for those who look for a flag.
type versionFlag bool

// BeforeReset is called by the parser where the flag was given.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	thisVersion().write(app.Stdout)
	app.Exit(0)
	return nil
}
