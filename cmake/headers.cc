// Nothing but the precompiled headers (ForesightModule.cmake).
