package main

import (
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// On Windows, a process can only get console events.
var (
	endings    = []os.Signal{os.Interrupt, syscall.SIGTERM}
	forwarded  = endings
	brokenPipe = []os.Signal{syscall.SIGPIPE}
)

func inheritIgnored() {}

// whenUnread does nothing: the next write fails.
func whenUnread(io.Writer, func()) {}

// reaping does nothing: an ended child needs no wait.
func reaping() (stop func()) { return func() {} }

// group is a command that leads a process group, for console events, and a job, which has all processes that it starts.
type group struct {
	cmd    *exec.Cmd
	job    windows.Handle // 0 if it could not be created
	events chan event
}

// startGroup starts the command. Its events must be read until it has exited.
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

// join adds the command to a job. Processes that it started before are not in the job.
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

// terminate asks the group to end. This works for programs with a console.
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

// working reports whether processes of the command are still in its job.
func (g *group) working() bool {
	var a jobAccounting
	if g.job == 0 {
		return false
	}
	err := windows.QueryInformationJobObject(g.job, 1, uintptr(unsafe.Pointer(&a)), uint32(unsafe.Sizeof(a)), nil)
	return err == nil && a.active > 0
}

// adoptOrphans does nothing: this system has no orphans.
func adoptOrphans() {}

// alive returns false after the command has exited. The rest of the job can't be asked to end, so it is ended.
func (g *group) alive() bool {
	g.kill()
	return false
}

// terminal is empty: a console has no foreground group.
type terminal struct{}

func openTerminal() *terminal { return nil }

func (*terminal) giveTo(*group) {}

func (*terminal) close(bool) {}

func (*terminal) lent() bool { return false }

// forward sends a console event to the group.
func (v *supervisor) forward(os.Signal) { v.group.terminate() }

func (v *supervisor) stopped(event) {}

// inForeground returns true: a console belongs to all of its programs.
func inForeground(*os.File) bool { return true }

// checkPrivate does nothing: the access control lists of the user's directories, which new ones inherit, are private.
func checkPrivate(string) error { return nil }

// detached makes a process survive the console of its parent.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS, HideWindow: true}
}

// closeInherited does nothing: only named handles are inherited.
func closeInherited() {}

// guard is not needed: the system does not allow the removal of the store's lock while a server has it open.
func guard(string) (release func(), err error) { return func() {}, nil }

// enoughFiles always succeeds.
func enoughFiles() error { return nil }

// freeOfStarter does nothing: limits are not inherited.
func freeOfStarter(*slog.Logger) {}

// watchProcess returns a channel that is closed when a process has ended; terminate does nothing on this system.
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
