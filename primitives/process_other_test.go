//go:build !unix

package primitives_test

func (p *process) stop() bool { return false }
func (p *process) resume()    {}
