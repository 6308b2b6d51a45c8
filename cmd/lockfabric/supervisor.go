package main

import (
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
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
