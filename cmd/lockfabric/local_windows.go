package main

import (
	"log/slog"
	"syscall"

	"golang.org/x/sys/windows"
)

// checkPrivate does nothing: the user's own directories are private through their
// access control lists, which new directories inherit.
func checkPrivate(string) error { return nil }

// detached makes a process survive the console of the one that started it.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS, HideWindow: true}
}

// closeInherited does nothing: only the handles that are named are inherited.
func closeInherited() {}

// guard is not needed: the system lets nobody remove the lock of the store while a
// server has it open.
func guard(string) (release func(), err error) { return func() {}, nil }

// enoughFiles has nothing to refuse.
func enoughFiles() error { return nil }

// freeOfStarter does nothing: limits are not inherited.
func freeOfStarter(*slog.Logger) {}
