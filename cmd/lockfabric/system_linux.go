package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const lastSignal = syscall.Signal(64)

// moreEndings returns the additional signals of this system. Go can catch the real-time signals from 35 on.
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

// dieWithParent makes the kernel end the command if this program is killed and can't do it, because the lock is then
// not renewed any more. SIGTERM lets the command use the rest of the lease.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }

// adoptOrphans makes this program the parent of orphans among its descendants.
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// parentOf returns a process's parent, or 0 if it is unknown.
func parentOf(pid int) int {
	stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	// "pid (command) state ppid"; the command can contain any character.
	var state string
	var parent int
	_, _ = fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &parent)
	return parent
}

// guard allows one server for the path of a local server's directory, even if the directory is removed and created
// again, because the lock in the store is removed with the store. It uses an abstract socket: its name is not a file
// that somebody could remove, it ends with its process, and it is valid in one network namespace, like loopback. In a
// sandbox without abstract sockets it uses a file, as on other systems.
func guard(dir string) (release func(), err error) {
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	name := &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@lockfabric-%d-%x", os.Geteuid(), sha256.Sum256([]byte(path)))}
	l, err := net.ListenUnix(name.Net, name)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, guardedBy(name)
	}
	if err != nil {
		return guardFile(dir, "/tmp")
	}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	return func() { _ = l.Close() }, nil
}

// guardedBy returns errGuarded, unless another user has the name: every user can take every name.
func guardedBy(name *net.UnixAddr) error {
	c, err := net.DialUnix(name.Net, nil, name)
	if err != nil {
		return errGuarded // the process may just have ended
	}
	defer func() { _ = c.Close() }()
	owner := os.Geteuid()
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				owner = int(cred.Uid)
			}
		})
	}
	if owner != os.Geteuid() {
		return fmt.Errorf("user %d keeps the local server from starting, by the socket %s: %w", owner, name.Name, syscall.EADDRINUSE)
	}
	return errGuarded
}

// watchProcess returns a channel that is closed when a process has ended, and a function that asks this process to end.
// The function never affects a later process with the same id.
func watchProcess(pid int) (gone <-chan struct{}, terminate func(), err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ENOSYS || err == unix.EPERM { // an old kernel, or a sandbox
		return pollProcess(pid)
	}
	if err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if n > 0 || err != nil && err != unix.EINTR {
				close(ended)
				return
			}
		}
	}()
	return ended, func() { _ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0) }, nil
}
