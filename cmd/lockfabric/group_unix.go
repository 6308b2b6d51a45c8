//go:build unix

package main

import (
	"errors"
	"os/exec"
	"runtime"
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

// watch reports when the leader is stopped and when it has exited. os/exec can't
// tell of the former. It waits for all children, so that those that this program
// has adopted don't stay as zombies.
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
