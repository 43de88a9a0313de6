"""What ScAle is compared with: LoRA, IA3 and a free last-token bias."""
