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

// lookForGroup is how often the end of a process group is looked for; nothing
// tells of it. With --wait-children it can last, and is looked for less and less often.
const (
	lookForGroup   = 10 * time.Millisecond
	lookForGroupAt = 200 * time.Millisecond // at most
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
	children  bool // go on until all of the group has ended
	log       *slog.Logger

	group     *group
	term      *terminal // nil without one
	signalled bool      // a signal ended the command
	told      bool      // to end, by SIGINT or SIGTERM
	typed     bool      // ^C or ^\ at the terminal ended the command
}

// event is a change of the command itself, the leader of its group.
type event struct {
	exited bool
	code   int // of the exit, 128+n for signal n
	signal int // that stopped it, or ended it
}

// run starts the command and waits for it. The error is ErrLost when it was
// lost before the command ended, or says why it did not start.
func (v *supervisor) run(cmd *exec.Cmd) (code int, err error) {
	if err := v.held.Err(); err != nil {
		return 0, err
	}
	// Before the start: what comes in between is for the command, and a stop that
	// took us alone would leave it running under a lock that nobody renews.
	catch(v.sigs, forwarded)
	v.term = openTerminal() // before the command can change how it is set
	if v.children {
		adoptOrphans() // else one that its new parent doesn't wait for would count as alive
	}
	if v.group, err = startGroup(cmd); err == nil {
		v.term.giveTo(v.group)
		code, err = v.wait()
	}
	v.term.close(v.signalled) // else the command has set the terminal as it wanted it
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
			lost = nil // said once
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
			if err == nil { // who is left is in the background
				v.term.close(v.signalled)
				v.term = nil
			}
			// What the command started and left behind has to end as well.
			look = time.After(0)
		case <-look:
			if lost == nil && !v.group.alive() || lost != nil && !v.group.working() {
				return code, v.held.Err()
			}
			if look = time.After(every); lost != nil {
				every = min(2*every, lookForGroupAt)
			}
		case <-kill:
			v.group.kill()
			if killed = true; events == nil {
				return code, v.held.Err()
			}
		case sig := <-v.sigs:
			v.told = v.told || sig == os.Interrupt || sig == syscall.SIGTERM
			if events != nil || slices.Contains(endings, sig) { // else none would continue what it stops
				v.forward(sig)
			}
		}
	}
}

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

// label is what inspection shows of the command: not its arguments, which may be secret.
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

// insistent is how long after it has begun to end a run takes another signal for impatience. One that comes sooner is
// the same once more: timeout(1) and systemd send it to run and to all that it has started, which run passes on.
const insistent = 2 * time.Second

// errGivenUp says that a signal has ended the wait for a server that does not answer.
var errGivenUp = errors.New("given up")

// catch sends signals to c, but not those that are ignored: to catch them would undo that, for the command too.
func catch(c chan<- os.Signal, sigs []os.Signal) {
	for _, sig := range sigs { // to none signal.Notify would give all
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
}

// interruptible returns a context that a signal ends which asks to end, a channel that is closed when another one
// insists, and a function that stops looking. Signals after that stay in the channel.
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
		} else if enough = time.Since(first) > insistent; enough {
			close(insisted)
		}
		return enough
	})
}

// impatiently calls fn, which ends something and may have to wait for a server. The
// error is errGivenUp when a signal insists on ending at once; fn goes on then.
func impatiently(sigs <-chan os.Signal, fn func() error) error {
	again, begun := make(chan struct{}), time.Now()
	defer listen(sigs, func(sig os.Signal) (enough bool) {
		if enough = slices.Contains(endings, sig) && time.Since(begun) > insistent; enough {
			close(again)
		}
		return enough
	})()
	return unless(again, fn)
}

// listen calls heard for each signal until that has heard enough, or until stop.
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

// unless calls fn and returns its error, or errGivenUp without waiting for it.
func unless(enough <-chan struct{}, fn func() error) error {
	result := make(chan error, 1)
	go func() { result <- fn() }()
	select {
	case err := <-result:
		return err
	case <-enough:
		return errGivenUp
	}
}
