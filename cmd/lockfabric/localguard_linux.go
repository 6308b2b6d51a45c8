package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// guard keeps the path of a local server's directory to one server, also when the
// directory is removed and made again: the lock in the store goes with the store.
// The name of an abstract socket is no file that anybody could remove, ends with
// its process, and is as wide as loopback is: one network namespace.
// In a sandbox without such names it is a file, as on other systems.
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

// guardedBy returns errGuarded, unless another user has the name: every user can
// take every one.
func guardedBy(name *net.UnixAddr) error {
	c, err := net.DialUnix(name.Net, nil, name)
	if err != nil {
		return errGuarded // it may just have ended
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
