"""The data plane of the E2B dialect: the protocol of its guest agent, ended on the host with the guest functions of the engine."""
