// Package pause waits, for times that part those who would otherwise do the same at the same moment.
package pause
