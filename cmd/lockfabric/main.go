package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/alecthomas/kong"
	"github.com/lmittmann/tint"
	"github.com/nats-io/nats.go"
	"golang.org/x/term"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

type cli struct {
	connection
	Fabric        string        `default:"lockfabric" env:"LOCKFABRIC_FABRIC" help:"Name of the fabric. Programs with the same fabric on the same server share locks."`
	Output        string        `enum:"text,json" default:"text" help:"Format of results and logs: text or json."`
	LogLevel      string        `enum:"auto,debug,info,warn,error" default:"auto" help:"Log level on stderr: debug, info, warn or error; auto depends on the command."`
	Timeout       time.Duration `default:"10s" help:"How long to try to reach the server."`
	LocalDir      string        `placeholder:"DIR" env:"LOCKFABRIC_DIR" help:"Directory of the local server. Default: a directory in the user's state directory."`
	LocalIdleExit time.Duration `default:"10m" env:"LOCKFABRIC_LOCAL_IDLE_EXIT" help:"Idle time after which a local server that is started now ends."`

	ShowVersion versionFlag `name:"version" help:"Show the version of this program."`

	Run         runCmd         `cmd:"" help:"Run a command while holding a lock, or permits of a semaphore."`
	Lock        lockCmd        `cmd:"" help:"Hold a lock for the rest of a script."`
	Elect       electCmd       `cmd:"" help:"Run a command while this process is the leader, or show the leader."`
	Barrier     barrierCmd     `cmd:"" help:"Wait until a number of processes have arrived, or run a command at the same time as they do."`
	Latch       latchCmd       `cmd:"" help:"Wait until something has happened a number of times, or count it."`
	Serve       serveCmd       `cmd:"" help:"Run a server, standalone or as a cluster member."`
	Ls          lsCmd          `cmd:"" help:"List the locks and other names in use."`
	Tree        treeCmd        `cmd:"" help:"Show the locks in use below a name, level by level."`
	Top         topCmd         `cmd:"" help:"Show holders, waiters and the rate of changes, live in the terminal."`
	Deadlocks   deadlocksCmd   `cmd:"" help:"Show long waits of units that hold something, and deadlocks."`
	Inspect     inspectCmd     `cmd:"" help:"Show the holders and waiters of a lock or other name."`
	Release     releaseCmd     `cmd:"" help:"Take a lock or other name away from its holders."`
	Gc          gcCmd          `cmd:"" help:"Remove the entries of dead processes from all locks."`
	UI          uiCmd          `cmd:"" name:"ui" help:"Show holders and waiters in a browser."`
	Doctor      doctorCmd      `cmd:"" help:"Find problems of the server, the cluster and the fabric's buckets."`
	Version     versionCmd     `cmd:"" help:"Show the version of this program."`
	Help        helpCmd        `cmd:"" help:"Show the help of a command."`
	Permissions permissionsCmd `cmd:"" help:"Show the permissions that a NATS user needs."`
	Completion  completionCmd  `cmd:"" help:"Print a script that makes a shell complete command lines."`
	Complete    completeCmd    `cmd:"" hidden:"" help:"Print the possible next words of a command line."`
}

// streams are the outputs of a command.
type streams struct {
	out, err io.Writer
	log      *slog.Logger
	status   *statusLine // status line of the terminal that err may be
}

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }

// execute runs one command line and returns the exit code.
func execute(args []string, stdout, stderr *os.File) int {
	var c cli
	parser, err := newParser(&c, stdout, stderr)
	if err != nil {
		return report(stderr, fmt.Errorf("command line: %w", err))
	}
	// An empty variable counts as not set; it is not a file or a duration.
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
	if path, ok := errors.AsType[*fs.PathError](err); ok && path.Op == "write" { // from the help, which is written during parsing
		return report(stderr, writeError(path))
	}
	if err != nil {
		return report(stderr, usageError("%s: see '%s --help'", hideArgs(err.Error(), args), blamed(err)))
	}
	status := &statusLine{term: stderr}
	s := &streams{out: stdout, err: stderr, status: status, log: newLogger(status, c.Output, c.level(parsed.Selected().Name))}
	if err := c.checkRanges(pathOf(parsed.Selected())); err != nil {
		return report(stderr, err)
	}
	parsed.BindTo(context.Background(), (*context.Context)(nil))
	return report(stderr, parsed.Run(&c, s))
}

// blamed returns the command at which the parser stopped.
func blamed(err error) string {
	if at, ok := errors.AsType[*kong.ParseError](err); ok && at.Context.Selected() != nil {
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

// level returns the default log level of a command: a daemon logs what it does, run logs what endangers its lock, a
// watch logs why nothing comes, and all others only report their result.
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

// reported is the start of an error line.
const reported = "lockfabric: "

// report writes the line of an error, and returns its exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code := exitCode(err)
	if passed, ok := errors.AsType[*exitError](err); ok && passed.cause == nil {
		return code // the child process has already printed the error
	}
	fmt.Fprintf(w, "%s%s\n", reported, message(err))
	return code
}

// textMapper reads texts unchanged. The mappers of kong use JSON, which replaces every byte that is not UTF-8: the
// command of run would get another file name, and two lock names could become the same. It also gives better errors.
type textMapper struct {
	number bool // it can be negative
	set    func(text string, target reflect.Value) error
}

// Decode implements kong.Mapper.
func (m textMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	next := ctx.Scan.Peek()
	word, _ := next.Value.(string)
	after, equals := strings.CutPrefix(word, "=")
	// After a flag of one letter, a number can follow a =; the error is then reported later.
	tail := equals && next.Type == kong.ShortFlagTailToken
	if m.number && (tail || len(word) > 1 && word[0] == '-' && unicode.IsDigit(rune(word[1]))) {
		ctx.Scan.Pop()
		return m.set(after, target)
	}
	if next.IsEOL() {
		return errors.New("give a value")
	}
	token, err := ctx.Scan.PopValue("string")
	if err != nil { // the next word is a flag
		return errors.New("give a value, after a = if it begins with a dash")
	}
	return m.set(fmt.Sprint(token.Value), target)
}

var digits = regexp.MustCompile(`[0-9]+`)

func textMappers() []kong.Option {
	return []kong.Option{
		kong.KindMapper(reflect.String, textMapper{set: func(text string, target reflect.Value) error {
			target.SetString(text)
			return nil
		}}),
		kong.TypeMapper(reflect.TypeFor[time.Duration](), textMapper{true, func(text string, target reflect.Value) error {
			d, err := time.ParseDuration(text)
			if _, syntax := time.ParseDuration(digits.ReplaceAllString(text, "1")); err != nil && syntax == nil {
				return fmt.Errorf("%q is too long: give at most %dh, which is 292 years", text, math.MaxInt64/time.Hour)
			}
			if err != nil {
				return fmt.Errorf("%q is no duration: give one like 30s, 5m or 1h30m", text)
			}
			target.SetInt(int64(d))
			return nil
		}}),
		kong.KindMapper(reflect.Int, textMapper{true, func(text string, target reflect.Value) error {
			n, err := strconv.Atoi(text)
			if err != nil {
				return fmt.Errorf("%q is no whole number", text)
			}
			target.SetInt(int64(n))
			return nil
		}}),
		kong.NamedMapper("path", textMapper{set: func(text string, target reflect.Value) error {
			if text != "" { // an empty text does not mean the present directory
				text = kong.ExpandPath(text)
			}
			target.SetString(text)
			return nil
		}}),
		kong.TypeMapper(reflect.TypeFor[map[string]string](), textMapper{set: func(text string, target reflect.Value) error {
			key, value, ok := strings.Cut(text, "=")
			if !ok || key == "" {
				return fmt.Errorf("expected KEY=VALUE but got %q", text)
			}
			if target.IsNil() {
				target.Set(reflect.MakeMap(target.Type()))
			}
			target.SetMapIndex(reflect.ValueOf(key), reflect.ValueOf(value))
			return nil
		}}),
	}
}

// Exit codes. They follow sysexits.h and the shells. The package comment describes them.
const (
	exitUsage       = 64
	exitData        = 65
	exitUnavailable = 69
	exitInternal    = 70
	exitNotAcquired = 75
	exitLost        = 76
	exitRefused     = 77
	exitDoctor      = 78
	exitBroken      = 79
	exitCannotRun   = 126
	exitNotFound    = 127
	exitSignal      = 128 // plus the signal's number
)

// exitError is an error with an exit code. Without a cause, nothing is printed.
type exitError struct {
	code  int
	cause error
}

func (e *exitError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}

func (e *exitError) Unwrap() error { return e.cause }

// reworded is an error with a better text.
type reworded struct {
	error
	text string
}

func (e *reworded) Error() string { return e.text }

func (e *reworded) Unwrap() error { return e.error }

func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, cause: fmt.Errorf(format, args...)}
}

// exitCode returns the exit code of an error: its own, or that of its kind. The order matters if an error is of two
// kinds. For example, if a lock was not acquired because no server answered, the exit code is that of the server's
// failure. Otherwise a job that treats 75 as "another host runs it" would hide an outage.
func exitCode(err error) int {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	for _, k := range []struct {
		code int
		is   []error
	}{
		{exitUsage, []error{fabric.ErrInvalidOption, fabric.ErrInvalidName, kv.ErrInvalidOption, embedded.ErrInvalidOption}},
		{exitData, []error{fabric.ErrKindMismatch, fabric.ErrSizeMismatch, fabric.ErrTooLarge, fabric.ErrMalformedRecord, fabric.ErrNewerSchema}},
		{exitBroken, []error{fabric.ErrBroken, fabric.ErrDeleted}},
		// Before 69, because these errors are also of that kind, but only other credentials help.
		{exitRefused, []error{errRefused, nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired, nats.ErrPermissionViolation}},
		{exitUnavailable, []error{fabric.ErrUnavailable, fabric.ErrUncertain, fabric.ErrConnectionClosed, kv.ErrNoJetStream, kv.ErrServerTooOld, kv.ErrUnsafeConfig, kv.ErrShards, kv.ErrLimit, kv.ErrNoBucket,
			embedded.ErrStartFailed, embedded.ErrStoreInUse, embedded.ErrStoreFailed}},
		{exitNotAcquired, []error{fabric.ErrNotAcquired, fabric.ErrHeld, errNotPassed}},
		{exitLost, []error{fabric.ErrLost}},
	} {
		if slices.ContainsFunc(k.is, func(target error) bool { return errors.Is(err, target) }) {
			return k.code
		}
	}
	return exitInternal
}
