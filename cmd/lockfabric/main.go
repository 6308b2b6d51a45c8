// Command lockfabric runs programs under distributed locks, permits and leaderships
// that live in NATS JetStream, has them wait for each other, looks at all that, and serves it.
//
//	lockfabric run nightly-backup -- ./backup.sh
//	lockfabric run encoders --semaphore 3 -- ./encode.sh
//	lockfabric lock nightly-backup
//	lockfabric elect scheduler -- ./schedule.sh
//	lockfabric barrier nightly -n 3 -- ./work.sh
//	lockfabric latch wait migrated --count 2
//
// # Where the locks are
//
// With --server (or LOCKFABRIC_SERVER) they are on that NATS server or cluster,
// with --context on that of a context of the nats command; docs/connecting.md tells
// of credentials and TLS. Without either, they are on a server of this user on this
// host, which the first command starts in the background and which ends when nobody
// has used it for some minutes. Its locks, store and address are kept in the user's
// state directory (~/.local/state/lockfabric, by XDG_STATE_HOME another one; Application
// Support on macOS, LocalAppData on Windows), or in LOCKFABRIC_DIR; it listens on
// loopback only and lets in only who can read that directory. Such locks exclude the
// programs of one user on one host, and stay in the store when the server ends.
//
// When that directory is removed or replaced under the server, it notices within some
// seconds and ends; its holders lose their locks, and nobody is let in before their
// leases have ended. Only where the server was killed in the same TTL, its directory is
// gone too, and holders go on, nothing tells the next server of them.
//
// # What run promises
//
// CMD starts when the lock is held, in a process group of its own, with the
// standard streams of run, and with LOCKFABRIC_KEY and LOCKFABRIC_TOKEN (the
// fencing token) in its environment. Signals sent to run go to the group. When
// CMD ends the lock is released and its exit code is passed on; what CMD left in
// the background does not keep the lock, unless --wait-children says so, and with
// --hold-at-least it is released when that time is over. When no server answers then, or when run is
// to end while it waits, that takes some seconds; another signal cuts it short.
//
// All of this is so for permits and for a leadership, too. When the lock is lost while CMD runs, its group gets SIGTERM, what is left of it
// after --kill-after gets SIGKILL, and the exit code is 76 whatever CMD said.
// Others can have the lock already while CMD winds up: only a resource that checks
// the token is safe then.
//
// Stopping run from a terminal (^Z) stops CMD too, and its lock is not renewed
// meanwhile: when it is continued after the lease has run out, CMD is ended as
// after any loss. Some signals can't be caught. A run that gets SIGSTOP stops alone,
// and its lock runs out under CMD. A run that gets SIGKILL can't end CMD: on Linux
// the kernel then sends CMD, but not what CMD started, a SIGTERM; elsewhere CMD
// goes on without a lock. On Windows a signal to run becomes a Ctrl-Break for
// the group.
//
// # Exit codes
//
//	0        success
//	64       the command line makes no sense
//	65       the name is in use as something else, or with another size; or its record can't be read
//	69       the server can't be reached or used
//	70       the result can't be written, or a defect of this program
//	75       run, lock, elect: not acquired or not elected: held by others for the time given by --wait, unless --conflict-exit-code says another one;
//	         barrier, latch wait: not passed in that time; latch delete: somebody waits for it
//	76       run, elect, barrier: lost: the lock, the permit, the leadership or the membership was lost while CMD ran; lock --stdin: while it held it
//	77       the server refuses the credentials, or a permission that locks need
//	78       doctor: there is a problem (with --strict also a warning, or an unknown)
//	79       barrier: broken: another one gave up or died, or it was reset; latch wait: deleted meanwhile
//	126      run, elect, barrier: CMD can't be executed
//	127      run, elect, barrier: CMD was not found
//	128+n    run, lock, elect, barrier: CMD was, or lockfabric itself while it waited, ended by signal n
//	others   run, elect, barrier: CMD's own
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

// cli is the command line.
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
		return report(stderr, usageError("%s: see 'lockfabric --help'", hideArgs(err.Error(), args)))
	}
	status := &statusLine{term: stderr}
	s := &streams{out: stdout, err: stderr, status: status, log: newLogger(status, c.Output, c.level(parsed.Selected().Name))}
	parsed.BindTo(context.Background(), (*context.Context)(nil))
	return report(stderr, parsed.Run(&c, s))
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
