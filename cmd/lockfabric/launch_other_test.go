//go:build unix && !linux

package main

func launch([]string) int { return 99 }
