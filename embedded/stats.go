package embedded

// Stats are counters and sizes of a server. The counters begin at its start.
type Stats struct {
	Connections, TotalConnections              uint64 // of clients: now, and all there were
	Subscriptions                              uint64
	SlowConsumers                              uint64 // connections that were cut because they took too little
	InMessages, InBytes, OutMessages, OutBytes uint64 // of clients and of other servers
	Routes                                     uint64 // connections to other servers of the cluster
	Streams, Consumers                         uint64 // that this server keeps
	StoredMessages, StoredBytes                uint64
	APIRequests, APIErrors                     uint64 // of JetStream
	Clustered                                  bool   // JetStream is
	Leader                                     bool   // the cluster has a leader for its metadata, known here
	StreamsLed                                 uint64 // of Streams in a cluster, those that this server leads
}

// Stats returns what the server counts. After Shutdown it is of no meaning.
func (s *Server) Stats() Stats {
	var st Stats
	if v, err := s.srv.Varz(nil); err == nil {
		st.Connections, st.TotalConnections, st.Subscriptions = uint64(v.Connections), v.TotalConnections, uint64(v.Subscriptions)
		st.SlowConsumers, st.Routes = uint64(v.SlowConsumers), uint64(v.Routes)
		st.InMessages, st.InBytes, st.OutMessages, st.OutBytes = uint64(v.InMsgs), uint64(v.InBytes), uint64(v.OutMsgs), uint64(v.OutBytes)
	}
	if js, err := s.srv.Jsz(nil); err == nil {
		st.Streams, st.Consumers, st.StoredMessages, st.StoredBytes = uint64(js.Streams), uint64(js.Consumers), js.Messages, js.Bytes
		st.APIRequests, st.APIErrors, st.StreamsLed = js.API.Total, js.API.Errors, uint64(js.StreamsLeader)
		st.Clustered = js.Meta != nil
		st.Leader = st.Clustered && js.Meta.Leader != ""
	}
	return st
}
