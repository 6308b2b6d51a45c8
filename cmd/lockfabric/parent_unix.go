//go:build unix

package main

import (
	"time"

	"golang.org/x/sys/unix"
)

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
