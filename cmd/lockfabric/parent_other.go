//go:build unix && !linux

package main

// watchProcess returns a channel that is closed when a process has ended, and a function
// that asks it to end.
func watchProcess(pid int) (gone <-chan struct{}, terminate func(), err error) {
	return pollProcess(pid)
}
