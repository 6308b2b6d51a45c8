//go:build unix

package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// reaping waits for children that others have left to this program, until stop: as
// the first process of a container it adopts all orphans there, and it inherits the
// children of a shell that became it by exec. It must be stopped before a child is
// started whose status matters.
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
