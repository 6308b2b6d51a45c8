//go:build unix

package main

import (
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

// checkPrivate refuses a directory that others could prepare or read.
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

// detached makes a process survive the terminal and the session of the one that started it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// closeInherited closes the files that were open in the process which started this one. Every file that Go opens is
// marked close-on-exec, so what is not was inherited.
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

// guardFile keeps the path of a directory to one server by a file elsewhere, in a
// directory of the user's own below base. Who removes that as well removes the guard.
func guardFile(dir, base string) (release func(), err error) {
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	own := filepath.Join(base, fmt.Sprintf("lockfabric-%d", os.Geteuid()))
	if err := os.MkdirAll(own, dirMode); err != nil {
		return nil, err
	}
	if err := checkPrivate(own); err != nil { // any user can make it before
		return nil, err
	}
	f := flock.New(filepath.Join(own, fmt.Sprintf("%x.lock", sha256.Sum256([]byte(path)))), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	locked, err := f.TryLock()
	if err == nil && !locked {
		err = errGuarded
	}
	return func() { _ = f.Unlock() }, err
}

// minFiles is how many open files a local server needs at least: its store, and one for each client.
const minFiles = 256

// enoughFiles refuses to start a local server that could let nobody in later. What
// limits this process limits the server.
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

// freeOfStarter takes back what the one who happened to start the local server had set for itself: limits, as far as
// they are not hard ones, the mask of new files, and niceness, which needs a privilege.
func freeOfStarter(log *slog.Logger) {
	for _, which := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_FSIZE, unix.RLIMIT_CPU, unix.RLIMIT_DATA} {
		var l unix.Rlimit
		if unix.Getrlimit(which, &l) == nil && l.Cur != l.Max {
			l.Cur = l.Max
			_ = unix.Setrlimit(which, &l)
		}
	}
	unix.Umask(0o077)
	// All threads of its own group, of which it is the only process.
	if err := unix.Setpriority(unix.PRIO_PGRP, 0, 0); err != nil {
		log.Debug("the niceness of whoever started the local server stays", "error", err)
	}
}

// lookForParent is how often the end of a process is looked for where nothing tells of it.
const lookForParent = 100 * time.Millisecond

// pollProcess is watchProcess where only its number is known.
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
