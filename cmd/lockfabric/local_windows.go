package main

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// checkPrivate does nothing: the user's cache directory is private through its
// access control list, which new directories inherit.
func checkPrivate(string) error { return nil }

// detached makes a process survive the console of the one that started it.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS, HideWindow: true}
}

// closeInherited does nothing: only the handles that are named are inherited.
func closeInherited() {}
