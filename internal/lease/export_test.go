package lease

// Remembered returns how many leases the observer remembers.
func (o *Observer) Remembered() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.sights)
}

// SetMemory bounds what the observer remembers.
func (o *Observer) SetMemory(n int) { o.memory, o.pruneAt = n, n/100 }
