package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// checkFiles fails with ErrStoreGone when the store on disk is not the one that the
// server has open: its directory was emptied, moved or replaced, or a stream's
// directory was. The server goes on with the files that it has open and notices
// nothing by itself, and another server can start on the path. What is inside of a
// file is not looked at.
func (s *Server) checkFiles() error {
	if err := s.lock.present(); err != nil {
		return err
	}
	state, err := s.srv.Jsz(&natsserver.JSzOptions{Accounts: true, Streams: true, Config: true})
	if err != nil {
		return nil //nolint:nilerr // no JetStream any more, which Healthz tells
	}
	for _, account := range state.AccountDetails {
		for _, stream := range account.Streams {
			if stream.Config == nil || stream.Config.Storage != natsserver.FileStorage {
				continue
			}
			dir := filepath.Join(state.Config.StoreDir, account.Id, "streams", stream.Name)
			if err := checkStream(dir, stream.State.Msgs > 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkStream(dir string, messages bool) error {
	if _, err := os.Stat(filepath.Join(dir, natsserver.JetStreamMetaFile)); err != nil {
		return gone(err)
	}
	if !messages {
		return nil
	}
	blocks, err := filepath.Glob(filepath.Join(dir, "msgs", "*.blk"))
	if err == nil && len(blocks) == 0 {
		return gone(fmt.Errorf("%s has no messages any more: %w", dir, fs.ErrNotExist))
	}
	return nil
}

// present fails when the lock file is not at its path any more.
func (l *storeLock) present() error {
	ours, err := l.file.Stat()
	if err != nil {
		return nil //nolint:nilerr // released by Shutdown
	}
	there, err := os.Stat(l.file.Path())
	switch {
	case err != nil:
		return gone(err)
	case !os.SameFile(ours, there):
		return fmt.Errorf("%w: %s is another file", ErrStoreGone, l.file)
	}
	return nil
}

// gone takes what is not there for removed. That a file can't be looked at for
// another reason, such as too many open ones, says nothing.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrStoreGone, err)
	}
	return nil
}
