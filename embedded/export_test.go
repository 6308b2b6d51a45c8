package embedded

// SyncsAlways reports what the server itself says about its store.
func (s *Server) SyncsAlways() bool { return s.srv.JetStreamConfig().SyncAlways }
