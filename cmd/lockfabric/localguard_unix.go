//go:build unix && !linux

package main

// guard is guardFile: the system has no sockets with names outside of the file
// system.
func guard(dir string) (release func(), err error) { return guardFile(dir, "/tmp") }
