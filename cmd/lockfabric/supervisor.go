package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Interval of checks for the end of a process group, which nothing reports; with --wait-children it grows to the maximum.
const (
	lookForGroup    = 10 * time.Millisecond
	maxLookForGroup = 200 * time.Millisecond
)

// supervisor runs a command while something is held.
//
//	         exits                                   exits, group gone
//	running -------> done        +--> terminating ---------------------> done (lost)
//	   |                         |         | --kill-after
//	   +------- lock lost -------+         +--> killed -- exits --> done (lost)
type supervisor struct {
	held      held
	sigs      chan os.Signal
	killAfter time.Duration
	children  bool // wait until all processes of the group have ended
	log       *slog.Logger

	group     *group
	term      *terminal // nil without a terminal
	signalled bool      // a signal ended the command
	told      bool      // SIGINT or SIGTERM asked it to end
	typed     bool      // ^C or ^\ at the terminal ended the command
}

// event is a change of the command itself, which leads its group.
type event struct {
	exited bool
	code   int // exit code; 128+n for signal n
	signal int // signal that stopped or ended it
}

// run starts the command and waits for it. The error is ErrLost after a loss, or the reason why it did not start.
func (v *supervisor) run(cmd *exec.Cmd) (code int, err error) {
	if err := v.held.Err(); err != nil {
		return 0, err
	}
	// Before the start, because a stop of this program alone would leave the command under a lock that nobody renews.
	catch(v.sigs, forwarded)
	v.term = openTerminal() // before the command can change its settings
	if v.children {
		adoptOrphans() // otherwise an orphan that its new parent does not wait for would count as alive
	}
	if v.group, err = startGroup(cmd); err == nil {
		v.term.giveTo(v.group)
		code, err = v.wait()
	}
	v.term.close(v.signalled) // otherwise the command has set the terminal as it wanted
	return code, err
}

func (v *supervisor) wait() (code int, err error) {
	lost := v.held.Lost()
	events := v.group.events
	var kill, look <-chan time.Time
	killed, every := false, lookForGroup
	for {
		select {
		case <-lost:
			lost = nil // report it only once
			v.log.Info("ending the command, what it was to hold is lost", "key", v.held.Key(), "token", v.held.Token(), "kill_after", v.killAfter)
			v.group.terminate()
			kill = time.After(v.killAfter)
		case e := <-events:
			if !e.exited {
				v.stopped(e)
				continue
			}
			events, code, v.signalled = nil, e.code, e.signal != 0
			v.typed = (code == exitSignal+int(syscall.SIGINT) || code == exitSignal+int(syscall.SIGQUIT)) && v.term.lent()
			err := v.held.Err()
			if killed || err == nil && !v.children {
				return code, err
			}
			if err == nil { // the remaining processes are in the background
				v.term.close(v.signalled)
				v.term = nil
			}
			// Processes that the command has started and left behind must end as well.
			look = time.After(0)
		case <-look:
			if lost == nil && !v.group.alive() || lost != nil && !v.group.working() {
				return code, v.held.Err()
			}
			if look = time.After(every); lost != nil {
				every = min(2*every, maxLookForGroup)
			}
		case <-kill:
			v.group.kill()
			if killed = true; events == nil {
				return code, v.held.Err()
			}
		case sig := <-v.sigs:
			v.told = v.told || sig == os.Interrupt || sig == syscall.SIGTERM
			if events != nil || slices.Contains(endings, sig) { // otherwise nobody would continue what it stops
				v.forward(sig)
			}
		}
	}
}

// afterDashes returns the command after "--", which the parser passes through.
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

// label returns the text that inspection shows for the command: without its arguments, which may be secret.
func label(command string) string {
	name := []rune(oneLine(filepath.Base(command)))
	return string(name[:min(len(name), fabric.MaxOwnerLen/4)])
}

func cannotRun(command string, err error) error {
	code, what, advice := exitCannotRun, "can't be run", ""
	var starting *os.PathError
	switch {
	case errors.Is(err, os.ErrNotExist) && errors.As(err, &starting) && starting.Op == "fork/exec": // the command existed a moment ago
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

// repeatWindow is how long a second signal is treated as the first one: timeout(1) and systemd send a signal to run and to
// all its children, and run passes it on as well. A later signal means that run must end at once.
const repeatWindow = 2 * time.Second

// errGivenUp is returned if a signal has ended the wait for a server that does not answer.
var errGivenUp = errors.New("given up")

// catch sends signals to c, except those that are ignored: catching them would end this, for the command as well.
func catch(c chan<- os.Signal, sigs []os.Signal) {
	for _, sig := range sigs { // without signals, signal.Notify would send all
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
}

// signalNumber returns 0 for what has no number.
func signalNumber(sig os.Signal) int {
	s, _ := sig.(syscall.Signal)
	return int(s)
}

// interruptible returns a context that ends at a signal to end, and a channel that is closed at a second one.
func interruptible(ctx context.Context, sigs <-chan os.Signal) (_ context.Context, again <-chan struct{}, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	insisted := make(chan struct{})
	var first time.Time
	return ctx, insisted, listen(sigs, func(sig os.Signal) (enough bool) {
		if first.IsZero() {
			first = time.Now()
			cancel(&exitError{
				code:  exitSignal + signalNumber(sig),
				cause: fmt.Errorf("ended by signal %q while waiting: nothing is held", sig),
			})
		} else if enough = time.Since(first) > repeatWindow; enough {
			close(insisted)
		}
		return enough
	})
}

// listen calls heard for each signal, until heard returns true or stop is called.
func listen(sigs <-chan os.Signal, heard func(os.Signal) (enough bool)) (stop func()) {
	stopping, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case sig := <-sigs:
				if heard(sig) {
					return
				}
			case <-stopping:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(stopping)
		<-stopped
	})
}

// callUnlessDone calls fn and returns its error. If enough is closed, it returns errGivenUp without waiting for fn.
func callUnlessDone(enough <-chan struct{}, fn func() error) error {
	result := make(chan error, 1)
	go func() { result <- fn() }()
	select {
	case err := <-result:
		return err
	case <-enough:
		return errGivenUp
	}
}
