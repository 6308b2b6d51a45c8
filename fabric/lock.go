package fabric

// Lock is the hold of a lock, with its mode. Like every [Hold] it is a single-use handle.
type Lock struct{ *Hold }

// Mode returns the mode held, which Convert changes: a weaker one at once, a
// stronger one when it is granted.
func (l *Lock) Mode() Mode {
	l.mu.Lock()
	defer l.mu.Unlock()
	return modeOf(l.entry.Mode)
}
