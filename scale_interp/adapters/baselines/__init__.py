"""What ScAle is compared with: LoRA, IA3 and a free shift of the last token's heads."""
