package embedded

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Reload reads the files again that the options name: certificates, keys and
// authorities, and the configuration file with what it refers to. New connections
// see the change; clients whose user is gone are disconnected. The same checks
// apply as at the start, so it fails with ErrInvalidOption for files that make no
// sense, and with ErrReload for a change that needs a restart. Then everything
// stays as it was.
func (s *Server) Reload() error {
	s.reload.Lock()
	defer s.reload.Unlock()
	select {
	case <-s.stopping:
		return ErrStopped
	default:
	}
	p, err := s.cfg.plan(s.identity)
	if err != nil {
		return err
	}
	o := p.options
	if s.cfg.tempStore {
		o.StoreDir = s.dir
	}
	if o.StoreDir, err = filepath.Abs(o.StoreDir); err != nil {
		return fmt.Errorf("%w: %w", ErrReload, err)
	}
	if err := s.srv.ReloadOptions(o); err != nil {
		// What comes after it are whole blocks of options, passwords included.
		text, _, _ := strings.Cut(err.Error(), ": old=")
		return fmt.Errorf("%w: %s", ErrReload, text)
	}
	s.access.Store(p.access)
	p.log(s.cfg.logger)
	return nil
}
