package lease

import "time"

// Patience returns how long a renewal by this configuration waits for an answer.
func (c Config) Patience(remaining time.Duration, unanswered int) time.Duration {
	c, err := c.resolve()
	if err != nil {
		panic(err)
	}
	return c.patience(remaining, timeouts(unanswered))
}

// LeastRoom is the least expected time of an attempt.
const LeastRoom = minAttempt

// Remembered returns how many leases the observer remembers.
func (o *Observer) Remembered() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.observations)
}

// SetMemory bounds how many leases the observer remembers.
func (o *Observer) SetMemory(n int) { o.maxRemembered, o.pruneAt = n, n/100 }

// Renewals returns how many renewals have succeeded, since Limit if that was called.
func (l *Lease) Renewals() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewals
}
