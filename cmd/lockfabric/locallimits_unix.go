//go:build unix

package main

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// minFiles is how many open files a local server needs at least: its store, and one
// for each client.
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

// freeOfStarter takes back what the one who happened to start the local server had
// set for itself: limits, as far as they are not hard ones, the mask of new files, and
// niceness, which needs a privilege.
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
