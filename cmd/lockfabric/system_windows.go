package main

import (
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// On Windows a console event is all that a process gets.
var (
	endings    = []os.Signal{os.Interrupt, syscall.SIGTERM}
	forwarded  = endings
	brokenPipe = []os.Signal{syscall.SIGPIPE}
)

func inheritIgnored() {}

// reaping does nothing: a child here is gone when it has ended.
func reaping() (stop func()) { return func() {} }

func signalNumber(sig os.Signal) int {
	if s, ok := sig.(syscall.Signal); ok {
		return int(s)
	}
	return 0
}

// group is a command as the head of a process group and a job: the group gets
// the console events, the job holds all that the command starts.
type group struct {
	cmd    *exec.Cmd
	job    windows.Handle // 0 if it could not be made
	events chan event
}

// startGroup starts the command. Its events have to be read until it has exited.
func startGroup(cmd *exec.Cmd) (*group, error) {
	g := &group{cmd: cmd, events: make(chan event, 1)}
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	g.join()
	go func() {
		_ = cmd.Wait()
		g.events <- event{exited: true, code: cmd.ProcessState.ExitCode()}
	}()
	return g, nil
}

// join puts the command into a job. What it started before that is not in it.
func (g *group) join() {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return
	}
	p, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(g.cmd.Process.Pid))
	if err == nil {
		err = windows.AssignProcessToJobObject(job, p)
		_ = windows.CloseHandle(p)
	}
	if err != nil {
		_ = windows.CloseHandle(job)
		return
	}
	g.job = job
}

// terminate asks the group to end, which works for programs with a console.
func (g *group) terminate() {
	_ = windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(g.cmd.Process.Pid))
}

func (g *group) kill() {
	if g.job != 0 {
		_ = windows.TerminateJobObject(g.job, exitLost)
	}
	_ = g.cmd.Process.Kill()
}

// jobAccounting is JOBOBJECT_BASIC_ACCOUNTING_INFORMATION.
type jobAccounting struct {
	userTime, kernelTime, periodUserTime, periodKernelTime int64
	pageFaults, processes, active, terminated              uint32
}

// working reports whether the command has left anybody at work in its job.
func (g *group) working() bool {
	var a jobAccounting
	if g.job == 0 {
		return false
	}
	err := windows.QueryInformationJobObject(g.job, 1, uintptr(unsafe.Pointer(&a)), uint32(unsafe.Sizeof(a)), nil)
	return err == nil && a.active > 0
}

// adoptOrphans does nothing: there are none here.
func adoptOrphans() {}

// alive says no once the command has exited: there is nobody left to be asked, so the rest of the job is ended.
func (g *group) alive() bool {
	g.kill()
	return false
}

// terminal does not exist here: a console has no foreground group.
type terminal struct{}

func openTerminal() *terminal { return nil }

func (*terminal) giveTo(*group) {}

func (*terminal) close(bool) {}

func (*terminal) lent() bool { return false }

// forward gives a console event to the group.
func (v *supervisor) forward(os.Signal) { v.group.terminate() }

func (v *supervisor) stopped(event) {}

// inForeground reports whether this console is ours to write to; a console belongs to all of its programs.
func inForeground(*os.File) bool { return true }

// checkPrivate does nothing: the user's own directories are private through their
// access control lists, which new directories inherit.
func checkPrivate(string) error { return nil }

// detached makes a process survive the console of the one that started it.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS, HideWindow: true}
}

// closeInherited does nothing: only the handles that are named are inherited.
func closeInherited() {}

// guard is not needed: the system lets nobody remove the lock of the store while a server has it open.
func guard(string) (release func(), err error) { return func() {}, nil }

// enoughFiles has nothing to refuse.
func enoughFiles() error { return nil }

// freeOfStarter does nothing: limits are not inherited.
func freeOfStarter(*slog.Logger) {}

// watchProcess returns a channel that is closed when a process has ended, and a function
// that asks it to end, which does nothing here.
func watchProcess(pid int) (gone <-chan struct{}, terminate func(), err error) {
	p, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = windows.WaitForSingleObject(p, windows.INFINITE)
	}()
	return ended, func() {}, nil
}
