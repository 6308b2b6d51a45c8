// Package pause waits, for random times, so that many processes don't do the same at the same moment.
package pause
