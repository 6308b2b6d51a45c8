package main

import (
	"golang.org/x/sys/unix"
)

// watchProcess returns a channel that is closed when a process has ended, and a function
// that asks it to end, and no other one that has its number later.
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
