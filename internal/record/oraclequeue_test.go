package record

// inTheWay returns the entry that a request that can't be granted waits for.
func (o *oracle) inTheWay(want Mode) string {
	for _, h := range o.list(true) {
		if !oracleCompatible(h.op.Mode, want) {
			return h.op.ID
		}
	}
	for _, h := range o.list(true) {
		if h.convert != "" {
			return h.op.ID
		}
	}
	return append(o.list(false), o.list(true)...)[0].op.ID
}

// turns counts the groups that hold one after the other before a new request is granted: the
// holders, each conversion, and the queue in groups of compatible waiters.
func (o *oracle) turns(newcomer Mode) int {
	groups := 1 + len(o.converting())
	var group []Mode
	queue := []Mode{}
	for _, e := range o.list(false) {
		queue = append(queue, e.op.Mode)
	}
	for _, m := range append(queue, newcomer) {
		for _, other := range group {
			if !oracleCompatible(other, m) {
				groups, group = groups+1, nil
				break
			}
		}
		group = append(group, m)
	}
	return groups
}
