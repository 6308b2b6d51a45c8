//go:build unix

package main

import (
	"errors"
	"io"
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

// group is a command that leads a process group.
type group struct {
	pid    int // process id of the leader, and id of the group
	events chan event
}

// startGroup starts the command. Its events must be read until it has exited.
func startGroup(cmd *exec.Cmd) (*group, error) {
	g := &group{events: make(chan event, 1)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// When the thread that started the command ends, the kernel treats this as the end of the parent. The thread
		// ends with this goroutine.
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

// watch reports stops of the leader, which os/exec can't, and its exit. It waits for all children, also adopted ones.
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

// signal sends a signal to the whole group. If the group is gone, it does nothing.
func (g *group) signal(sig syscall.Signal) { _ = unix.Kill(-g.pid, sig) }

// terminate asks the group to end. A stopped process is continued, because otherwise it would not get the signal.
func (g *group) terminate() {
	g.signal(unix.SIGTERM)
	g.signal(unix.SIGCONT)
}

func (g *group) kill() { g.signal(unix.SIGKILL) }

// working reports whether processes of the command are still in its group.
func (g *group) working() bool { return g.alive() }

// alive reports whether the group has members after its leader was waited for. Adopted members must be waited for.
func (g *group) alive() bool {
	reap()
	return !errors.Is(unix.Kill(-g.pid, 0), unix.ESRCH)
}

// reaping waits for children of other programs, until stop is called: the first process of a container adopts all orphans
// there, and a program that replaced a shell by exec inherits its children. It must be stopped before a child is started
// whose exit status is needed.
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

// endings are the signals that end a program which does not catch them, including those for faults, which other processes
// can send. They end a waiting run. While the command runs, they are passed on to it, like all signals in forwarded.
// SIGTSTP and SIGCONT are forwarded because a stopped run can't renew the lock, so the command must stop first.
//
// Not forwarded are: SIGKILL and SIGSTOP, which can't be caught; SIGCHLD and SIGURG, which this program uses; SIGPIPE
// and SIGXFSZ, which its own writes cause; SIGTTIN and SIGTTOU, which its own use of the terminal causes; SIGPROF, and
// 32 to 34 on Linux, which Go's runtime uses.
var (
	endings = append([]os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGALRM, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGXCPU, unix.SIGVTALRM,
		unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS,
	}, moreEndings()...)
	forwarded = append(slices.Clip(endings), unix.SIGIO, unix.SIGWINCH, unix.SIGTSTP, unix.SIGCONT)
	// brokenPipe is caught and ignored. Otherwise a warning to a closed pipe would end this program, and the hold.
	brokenPipe = []os.Signal{unix.SIGPIPE}
)

// whenUnread calls fn when the last reader of a pipe is gone.
func whenUnread(pipe io.Writer, fn func()) {
	file, ok := pipe.(*os.File)
	if !ok {
		return
	}
	go func() {
		fds := []unix.PollFd{{Fd: int32(file.Fd())}}
		for {
			_, err := unix.Poll(fds, -1)
			if err == unix.EINTR {
				continue
			}
			if fds[0].Revents&unix.POLLERR != 0 {
				fn()
			}
			return
		}
	}()
}

// inheritIgnored ignores the signals that were ignored when this program was started, for example by nohup, a shell's
// trap or systemd, so that the command inherits this; Go's runtime undoes it. It leaves out SIGCHLD, without which nobody
// could wait for the command, and SIGURG, which Go's runtime needs.
func inheritIgnored() {
	for sig := syscall.Signal(1); sig <= lastSignal; sig++ {
		if ignoredAtStart(sig) && sig != unix.SIGCHLD && sig != unix.SIGURG {
			signal.Ignore(sig)
		}
	}
}

// continued is how long to wait for the SIGCONT that ends a stop, from before the stop, which can come late on a busy
// machine. A program that continues before the SIGCONT arrives would stop again while its command runs.
const continued = 10 * time.Second

// terminal is the controlling terminal. It belongs to one process group at a time: that of this program, which got it
// from the shell, or that of the command.
type terminal struct {
	file  *os.File
	own   int         // process group of this program
	modes *term.State // its settings, for example no echo; nil if another program was using it
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

// giveTo gives the terminal to the command if no other program uses it. In a pipeline, where a pager may read keys from
// the terminal, the command gets it only when it asks for it and is stopped; see stopped.
func (t *terminal) giveTo(g *group) {
	if t == nil {
		return
	}
	t.group = g
	// Without this, taking the terminal back from the background would stop this program. It must not be set before the
	// command has started, because the command would inherit it.
	signal.Ignore(unix.SIGTTOU)
	if t.eager {
		t.lend()
	}
}

func (t *terminal) set(pgrp int) bool {
	return unix.IoctlSetPointerInt(int(t.file.Fd()), unix.TIOCSPGRP, pgrp) == nil
}

// lent reports whether the command has the terminal, and so gets the input: ^C goes to the command only.
func (t *terminal) lent() bool {
	return t != nil && t.group != nil && foregroundOf(t.file) == t.group.pid
}

// lend gives the terminal to the command, if this program has it. A run in the background of a shell does not.
func (t *terminal) lend() bool { return foregroundOf(t.file) == t.own && t.set(t.group.pid) }

// takeBack takes the terminal back and reports whether the command had it.
func (t *terminal) takeBack() bool { return t.lent() && t.set(t.own) }

// close takes the terminal back. If restore is set, it restores the settings: a killed command could not do this, and
// the shell does it only for programs whose end by a signal it sees.
func (t *terminal) close(restore bool) {
	if t == nil {
		return
	}
	if t.group != nil {
		t.takeBack()
	}
	if restore && t.modes != nil && foregroundOf(t.file) == t.own {
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
		v.term.lend() // the shell has moved this program to the foreground
	}
	v.group.signal(s)
}

// stopped handles a stop of the command. If the command asked for the terminal, it gets it. Otherwise the user has stopped
// it from the terminal, and this program stops, too, so that the shell notices. Without a terminal, the program that
// stopped the command will continue it, and the lock is kept.
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
	// While this program was stopped, nothing renewed the lock. If the lock is lost, the command must not continue to
	// work; it gets SIGTERM first.
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

// stopSelf stops the process group of this program (a pipeline or a script) until the shell continues it. It returns
// the signals that came in the meantime. Other members of the group get the SIGTSTP of ^Z. This program gets SIGSTOP,
// because Go can't restore the default action of a caught SIGTSTP. The kernel does not stop a group that no shell could
// continue; this must be checked here.
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

// orphaned reports whether no known ancestor in this session, such as a shell, is outside the process group.
func orphaned() bool {
	session, err := unix.Getsid(0)
	for pid := unix.Getppid(); err == nil && pid > 0; pid = parentOf(pid) {
		group, gerr := unix.Getpgid(pid)
		sid, serr := unix.Getsid(pid)
		if gerr != nil || serr != nil || sid != session {
			return true
		}
		if group != unix.Getpgrp() {
			return false
		}
	}
	return true
}

// inForeground reports whether this process group has the terminal. Other programs may be stopped if they write to it.
func inForeground(f *os.File) bool { return foregroundOf(f) == unix.Getpgrp() }

// foregroundOf returns the process group that has a terminal, or -1.
func foregroundOf(f *os.File) int {
	pgrp, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return -1
	}
	return pgrp
}
