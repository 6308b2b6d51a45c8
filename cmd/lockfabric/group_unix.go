//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// group is a command as the leader of a process group.
type group struct {
	pid    int // of the leader, and the group's id
	events chan event
}

// startGroup starts the command. Its events have to be read until it has exited.
func startGroup(cmd *exec.Cmd) (*group, error) {
	g := &group{events: make(chan event, 1)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that started the command for the
		// end of its parent. The thread ends with this goroutine.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			g.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			g.watch()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return g, nil
}

// watch reports when the leader is stopped and when it has exited. os/exec can't tell of the former. It waits for all
// children, so that those that this program has adopted don't stay as zombies.
func (g *group) watch() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && pid != g.pid:
		case err != nil:
			g.events <- event{exited: true, code: exitInternal}
			return
		case ws.Stopped():
			g.events <- event{signal: int(ws.StopSignal())}
		case ws.Signaled():
			g.events <- event{exited: true, code: exitSignal + int(ws.Signal()), signal: int(ws.Signal())}
			return
		case ws.Exited():
			g.events <- event{exited: true, code: ws.ExitStatus()}
			return
		}
	}
}

// signal sends to the whole group. A group that is gone needs no signal.
func (g *group) signal(sig syscall.Signal) { _ = unix.Kill(-g.pid, sig) }

// terminate asks the group to end; one that is stopped would not hear it.
func (g *group) terminate() {
	g.signal(unix.SIGTERM)
	g.signal(unix.SIGCONT)
}

func (g *group) kill() { g.signal(unix.SIGKILL) }

// working reports whether the command has left anybody at work in its group.
func (g *group) working() bool { return g.alive() }

// alive reports whether anybody is left in the group, once the leader has been
// waited for. What of it we have adopted is gone only when waited for.
func (g *group) alive() bool {
	reap()
	return !errors.Is(unix.Kill(-g.pid, 0), unix.ESRCH)
}

// reaping waits for children that others have left to this program, until stop: as the first process of a container
// it adopts all orphans there, and it inherits the children of a shell that became it by exec. It must be stopped
// before a child is started whose status matters.
func reaping() (stop func()) {
	ended, done := make(chan os.Signal, 1), make(chan struct{})
	ended <- unix.SIGCHLD // some may have ended before
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		defer close(done)
		for range ended {
			reap()
		}
	}()
	return func() {
		signal.Stop(ended)
		close(ended)
		<-done
	}
}

// reap waits for every child that has ended.
func reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
			return
		}
	}
}

// endings are the signals that end a program which doesn't catch them. They end a run that waits; while the command
// runs they are its affair, as are the rest of forwarded. Those for faults are among them because Go tells of the
// ones that were sent.
//
// SIGTSTP and SIGCONT are forwarded because a run that is stopped can't renew the
// lock: the command has to stop first.
//
// Not forwarded: SIGKILL and SIGSTOP can't be caught; SIGCHLD and SIGURG are for this
// program; SIGPIPE and SIGXFSZ come of what it writes itself, SIGTTIN and SIGTTOU
// of its use of the terminal; SIGPROF is the runtime's of Go, and so are 32 to 34 on Linux.
var (
	endings = append([]os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGALRM, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGXCPU, unix.SIGVTALRM,
		unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS,
	}, moreEndings()...)
	forwarded = append(slices.Clip(endings), unix.SIGIO, unix.SIGWINCH, unix.SIGTSTP, unix.SIGCONT)
	// brokenPipe is caught, and dropped: else a warning to a reader that is gone would
	// end this program, and the hold.
	brokenPipe = []os.Signal{unix.SIGPIPE}
)

// inheritIgnored ignores what was ignored when this program was started, as nohup, a shell's trap or systemd want it.
// The command then inherits that. Go's runtime undoes it for most signals. SIGCHLD is left out, because nobody could
// wait for the command, and SIGURG, which Go's runtime needs.
func inheritIgnored() {
	for sig := syscall.Signal(1); sig <= lastSignal; sig++ {
		if ignoredAtStart(sig) && sig != unix.SIGCHLD && sig != unix.SIGURG {
			signal.Ignore(sig)
		}
	}
}

func signalNumber(sig os.Signal) int {
	if s, ok := sig.(syscall.Signal); ok {
		return int(s)
	}
	return 0
}

// continued is how long to wait for word of the SIGCONT that ended a stop. It counts
// from before the stop, which on a busy machine can be a while after it was asked for;
// whoever goes on by then would be stopped behind a command that has been continued.
const continued = 10 * time.Second

// terminal is the controlling terminal, which belongs to one process group at a
// time: ours, as the shell gave it to us, or the command's.
type terminal struct {
	file  *os.File
	own   int         // our process group
	modes *term.State // how it was set: no echo, for example; nil when somebody else was using it
	group *group
	eager bool
}

// openTerminal returns nil when there is no terminal.
func openTerminal() *terminal {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	t := &terminal{file: f, own: unix.Getpgrp(), eager: term.IsTerminal(0) && term.IsTerminal(1)}
	if inForeground(f) {
		t.modes, _ = term.GetState(int(f.Fd()))
	}
	return t
}

// giveTo lends the terminal to the command if nobody else uses it; in a pipeline,
// where a pager may read keys from it, only when the command asks for it. One that has
// asked by now is stopped, and the event of that finds it with the terminal.
func (t *terminal) giveTo(g *group) {
	if t == nil {
		return
	}
	t.group = g
	// To take it back from the background would stop us. Not before the command
	// has been started, which would inherit it.
	signal.Ignore(unix.SIGTTOU)
	if t.eager {
		t.lend()
	}
}

func (t *terminal) foreground() int {
	pgrp, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return -1
	}
	return pgrp
}

func (t *terminal) set(pgrp int) bool {
	return unix.IoctlSetPointerInt(int(t.file.Fd()), unix.TIOCSPGRP, pgrp) == nil
}

// lent reports whether the command has the terminal, and so gets what is typed there: ^C goes to it alone.
func (t *terminal) lent() bool { return t != nil && t.group != nil && t.foreground() == t.group.pid }

// lend gives the terminal to the command, if it is ours to give: a run in the background of a shell has none.
func (t *terminal) lend() bool { return t.foreground() == t.own && t.set(t.group.pid) }

// takeBack reports whether the command had the terminal.
func (t *terminal) takeBack() bool { return t.lent() && t.set(t.own) }

// close takes the terminal back, and sets it as it was if restore says so: a command that was killed could not do so,
// and the shell does it only for those whose end by a signal it sees.
func (t *terminal) close(restore bool) {
	if t == nil {
		return
	}
	if t.group != nil {
		t.takeBack()
	}
	if restore && t.modes != nil && t.foreground() == t.own {
		_ = term.Restore(int(t.file.Fd()), t.modes)
	}
	_ = t.file.Close()
}

func (v *supervisor) forward(sig os.Signal) {
	s, ok := sig.(syscall.Signal)
	if !ok {
		return
	}
	if s == unix.SIGCONT && v.term != nil && v.term.eager {
		v.term.lend() // the shell has put us to the foreground
	}
	v.group.signal(s)
}

// stopped deals with a command that was stopped. If it asked for the terminal it gets it, if it has not got it in the
// meantime. Otherwise the user has stopped it from there, and we stop too, so that the shell notices. Without a
// terminal nothing is done: who stopped it will continue it, and the lock is kept.
func (v *supervisor) stopped(e event) {
	if v.term == nil {
		return
	}
	asked := e.signal == int(unix.SIGTTIN) || e.signal == int(unix.SIGTTOU)
	if asked && (v.term.lent() || v.term.lend()) {
		v.group.signal(unix.SIGCONT)
		return
	}
	had := v.term.takeBack()
	late := v.stopSelf()
	// While we were stopped nothing renewed the lock. If it is lost the command
	// must not do another step; it gets to hear SIGTERM first.
	if v.held.Err() == nil {
		if had || asked || v.term.eager {
			v.term.lend()
		}
		v.group.signal(unix.SIGCONT)
	}
	for _, sig := range late {
		v.forward(sig)
	}
}

// stopSelf stops our process group, a pipeline or a script with us in it, until
// the shell continues it. It returns the signals that came meanwhile.
//
// Others get the SIGTSTP that ^Z means; we can't, because Go has no way back to its default once it was caught. What
// the kernel would do for us then is to not stop a group that no shell could continue.
func (v *supervisor) stopSelf() (late []os.Signal) {
	if orphaned() {
		return nil
	}
	caught := !signal.Ignored(unix.SIGTSTP)
	signal.Ignore(unix.SIGTSTP)
	_ = unix.Kill(0, unix.SIGTSTP)
	_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
	if caught {
		signal.Notify(v.sigs, unix.SIGTSTP)
	}
	end := time.After(continued)
	for {
		select {
		case sig := <-v.sigs:
			if sig == unix.SIGCONT {
				return late
			}
			late = append(late, sig)
		case <-end:
			return late
		}
	}
}

// orphaned reports whether no ancestor in our session, such as a shell, is
// outside of our process group. What can't be found out counts as none.
func orphaned() bool {
	own := unix.Getpgrp()
	session, err := unix.Getsid(0)
	for pid := unix.Getppid(); err == nil && pid > 0; pid = parentOf(pid) {
		var group, sid int
		if group, err = unix.Getpgid(pid); err != nil {
			break
		}
		if sid, err = unix.Getsid(pid); err != nil || sid != session {
			break
		}
		if group != own {
			return false
		}
	}
	return true
}

// inForeground reports whether our process group has this terminal: others must
// not write to it, and may be stopped if they do.
func inForeground(f *os.File) bool {
	pgrp, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}
