//go:build unix

package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

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

// detached makes a process survive the terminal and the session of the one that
// started it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// closeInherited closes the files that were open in the process which started
// this one. Every file that Go opens is marked close-on-exec, so what is not
// was inherited.
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
