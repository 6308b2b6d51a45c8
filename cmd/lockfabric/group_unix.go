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

	"golang.org/x/sys/unix"
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
