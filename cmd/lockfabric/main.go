package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/alecthomas/kong"
	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

type cli struct {
	connection
	Fabric        string        `default:"lockfabric" env:"LOCKFABRIC_FABRIC" help:"Fabric to use: those who name the same one on the same server share locks."`
	Output        string        `enum:"text,json" default:"text" help:"Format of results and logs: text or json."`
	LogLevel      string        `enum:"auto,debug,info,warn,error" default:"auto" help:"What to log to stderr: debug, info, warn or error; auto suits the command."`
	Timeout       time.Duration `default:"10s" help:"How long to try to reach the server."`
	LocalDir      string        `placeholder:"DIR" env:"LOCKFABRIC_DIR" help:"Directory of the local server, one in the user's state directory unless given."`
	LocalIdleExit time.Duration `default:"10m" env:"LOCKFABRIC_LOCAL_IDLE_EXIT" help:"When a local server that is started now ends after its last client left."`

	ShowVersion versionFlag `name:"version" help:"Show the version of this program."`

	Run     runCmd     `cmd:"" help:"Run a command while holding a lock, or permits of a semaphore."`
	Lock    lockCmd    `cmd:"" help:"Hold a lock for the rest of a script."`
	Elect   electCmd   `cmd:"" help:"Run a command while this process is the leader, or tell who is."`
	Barrier barrierCmd `cmd:"" help:"Wait until a number of processes have come, or run a command together with them."`
	Latch   latchCmd   `cmd:"" help:"Wait until something was done a number of times, or count that."`
	Serve   serveCmd   `cmd:"" help:"Run a server, alone or as part of a cluster."`
	Ls      lsCmd      `cmd:"" help:"List the locks and so on that are in use."`
	Tree    treeCmd    `cmd:"" help:"Show the locks in use below a name, level by level."`

	Top topCmd `cmd:"" help:"Show who holds what, who waits and how much happens, live in the terminal."`

	Deadlocks deadlocksCmd `cmd:"" help:"Show who holds something and waits for long, and who waits for each other."`

	Inspect inspectCmd `cmd:"" help:"Show who holds a lock, or anything else, and who waits for it."`
	Release releaseCmd `cmd:"" help:"Take a lock, or anything else, away from its holders."`
	Gc      gcCmd      `cmd:"" help:"Remove the entries of dead processes from all locks."`
	UI      uiCmd      `cmd:"" name:"ui" help:"Show who holds what in a browser."`
	Doctor  doctorCmd  `cmd:"" help:"Find out what is wrong with the server, the cluster and the fabric's buckets."`
	Version versionCmd `cmd:"" help:"Show the version of this program."`
	Help    helpCmd    `cmd:"" help:"Show what a command is for."`

	Permissions permissionsCmd `cmd:"" help:"Show what a user of NATS has to be allowed for locks."`
	Completion  completionCmd  `cmd:"" help:"Print a script that makes a shell complete command lines."`
	Complete    completeCmd    `cmd:"" hidden:"" help:"Print what may come next on a command line."`
}

// streams are what a command writes to.
type streams struct {
	out, err io.Writer
	log      *slog.Logger
	status   *statusLine // of the terminal that err may be
}

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }

// execute runs one command line and returns the exit code.
func execute(args []string, stdout, stderr *os.File) int {
	var c cli
	parser, err := newParser(&c, stdout, stderr)
	if err != nil {
		return report(stderr, fmt.Errorf("command line: %w", err))
	}
	// An empty variable is as good as none, and not a file or a duration.
	for _, flag := range parser.Model.Flags {
		for _, name := range flag.Envs {
			if os.Getenv(name) == "" {
				_ = os.Unsetenv(name)
			}
		}
	}
	parsed, err := parser.Parse(args)
	if err == nil {
		c.note(parsed)
		err = c.validate()
	}
	var path *fs.PathError
	if errors.As(err, &path) && path.Op == "write" { // of the help, which is written while it parses
		return report(stderr, writeError(path))
	}
	if err != nil {
		return report(stderr, usageError("%s: see '%s --help'", hideArgs(err.Error(), args), blamed(err)))
	}
	status := &statusLine{term: stderr}
	s := &streams{out: stdout, err: stderr, status: status, log: newLogger(status, c.Output, c.level(parsed.Selected().Name))}
	parsed.BindTo(context.Background(), (*context.Context)(nil))
	return report(stderr, parsed.Run(&c, s))
}

// blamed names the command that the parser had come to.
func blamed(err error) string {
	var at *kong.ParseError
	if errors.As(err, &at) && at.Context.Selected() != nil {
		return "lockfabric " + pathOf(at.Context.Selected())
	}
	return "lockfabric"
}

func newParser(c *cli, stdout, stderr io.Writer, more ...kong.Option) (*kong.Kong, error) {
	k, err := kong.New(c, append(append([]kong.Option{
		kong.Name("lockfabric"),
		kong.Description("Distributed locks on NATS JetStream."),
		kong.Writers(stdout, stderr),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, FlagsLast: true}),
	}, textMappers()...), more...)...)
	if err == nil {
		arrange(k.Model)
	}
	return k, err
}

func (c *cli) validate() error {
	if c.Timeout <= 0 {
		return fmt.Errorf("--timeout=%v: give more than 0", c.Timeout)
	}
	if c.LocalIdleExit <= 0 {
		return fmt.Errorf("--local-idle-exit=%v: give more than 0", c.LocalIdleExit)
	}
	return nil
}

// level is how much a command logs unless told: a daemon tells what it does,
// run what endangers its lock, a watch why nothing comes, and the others report
// by their result.
func (c *cli) level(command string) slog.Level {
	level := slog.LevelError
	switch {
	case c.LogLevel != "auto":
		_ = level.UnmarshalText([]byte(c.LogLevel)) // kong has checked it
	case command == "serve", command == "ui", command == "inspect" && c.Inspect.Watch, command == "ls" && c.Ls.Watch, command == "elect" && c.Elect.Observe:
		level = slog.LevelInfo
	case command == "run", command == "lock", command == "elect", command == "barrier":
		level = slog.LevelWarn
	}
	return level
}

func newLogger(w *statusLine, format string, level slog.Level) *slog.Logger {
	switch {
	case format == "json":
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	case term.IsTerminal(int(w.term.Fd())):
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""}))
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// reported begins the line of an error.
const reported = "lockfabric: "

// report writes the one line that an error gets, and returns its exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code := exitCode(err)
	var passed *exitError
	if errors.As(err, &passed) && passed.cause == nil {
		return code // the child has said what there was to say
	}
	fmt.Fprintf(w, "%s%s\n", reported, message(err))
	return code
}
