package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const lastSignal = syscall.Signal(64)

// moreEndings returns those that only this system has. Go can catch the real-time
// signals from 35 on.
func moreEndings() []os.Signal {
	sigs := []os.Signal{unix.SIGPWR, unix.SIGIO}
	if sig := unix.SignalNum("SIGSTKFLT"); sig != 0 { // not on mips
		sigs = append(sigs, sig)
	}
	for sig := syscall.Signal(35); sig <= lastSignal; sig++ {
		sigs = append(sigs, sig)
	}
	return sigs
}

// dieWithParent has the kernel end the command when this program is killed and
// can't do it: the lock is not renewed any more then. SIGTERM lets the command
// use what is left of the lease.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }

// adoptOrphans makes this program the parent of what its children leave behind.
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// parentOf returns a process's parent, 0 if it can't be found out.
func parentOf(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// "pid (command) state ppid": the command can contain anything.
	var state string
	var parent int
	_, err = fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &parent)
	if err != nil {
		return 0
	}
	return parent
}
