//go:build unix

package main

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// checkPrivate refuses a directory that others could have prepared or can read.
func checkPrivate(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: name another one with --local-dir", dir, st.Uid)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is open to other users (mode %04o): chmod 700 it, or name another one with --local-dir", dir, fi.Mode().Perm())
	}
	return nil
}

// detached makes a process survive the terminal and the session of its parent.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// closeInherited closes the files that this process inherited: Go marks those that it opens as close-on-exec.
func closeInherited() {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
}

// guardFile allows one server for the path of a directory, with a file below base. Removing it removes the guard.
func guardFile(dir, base string) (release func(), err error) {
	path, err := filepath.EvalSymlinks(dir)
	own := filepath.Join(base, fmt.Sprintf("lockfabric-%d", os.Geteuid()))
	if err = cmp.Or(err, os.MkdirAll(own, dirMode)); err == nil {
		err = checkPrivate(own) // any user can create it first
	}
	if err != nil {
		return nil, err
	}
	f := flock.New(filepath.Join(own, fmt.Sprintf("%x.lock", sha256.Sum256([]byte(path)))), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	locked, err := f.TryLock()
	if err == nil && !locked {
		err = errGuarded
	}
	return func() { _ = f.Unlock() }, err
}

// minFiles is the smallest number of open files for a local server: its store, and one for each client.
const minFiles = 256

// enoughFiles refuses to start a local server with too few open files; it inherits the limits of this process.
func enoughFiles() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return nil //nolint:nilerr // nothing is known
	}
	if l.Max < minFiles {
		return fmt.Errorf("at most %d files may be open here (ulimit -Hn), and it needs %d: start it from elsewhere, by any command", l.Max, minFiles)
	}
	return nil
}

// freeOfStarter undoes the settings inherited from the starter: soft limits, umask, and niceness, which needs a
// privilege.
func freeOfStarter(log *slog.Logger) {
	for _, which := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_FSIZE, unix.RLIMIT_CPU, unix.RLIMIT_DATA} {
		var l unix.Rlimit
		if unix.Getrlimit(which, &l) == nil && l.Cur != l.Max {
			l.Cur = l.Max
			_ = unix.Setrlimit(which, &l)
		}
	}
	unix.Umask(0o077)
	// All threads of its own group, in which it is the only process.
	if err := unix.Setpriority(unix.PRIO_PGRP, 0, 0); err != nil {
		log.Debug("the niceness of whoever started the local server stays", "error", err)
	}
}

// lookForParent is the interval of checks for the end of a process, if nothing reports it.
const lookForParent = 100 * time.Millisecond

// pollProcess is watchProcess if only the process id is known.
func pollProcess(pid int) (gone <-chan struct{}, terminate func(), err error) {
	if err := unix.Kill(pid, 0); err == unix.ESRCH {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for unix.Kill(pid, 0) != unix.ESRCH {
			time.Sleep(lookForParent)
		}
	}()
	return ended, func() { _ = unix.Kill(pid, unix.SIGTERM) }, nil
}
